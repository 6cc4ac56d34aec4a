"""A map of the data by their projections on modes (UMAP, McInnes et al. 2018, arXiv:1802.03426)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import xarray as xr

from patterning_fast.arguments import Count, checked
from patterning_fast.domains import Within
from patterning_fast.patterning.modes import Modes

UmapSeed = Annotated[int, Within(least=0, most=2**32 - 1)]


@checked
def embed_data(
    modes: Modes, *, neighbours: Annotated[int, Within(least=2)] = 15, dimensions: Count = 2, seed: UmapSeed = 0
) -> xr.DataArray:
    """Points `[token or sample, axis]` of which those are near whose projections on the modes are alike.

    Projections are loadings times singular values. Give modes above the floor, `modes[:3]`: others are noise that every
    point gets. UMAP keeps neighbourhoods, not distances between groups of points. Raises ImportError without
    umap-learn, and ValueError for no more data than `neighbours`.
    """
    try:
        import umap  # only here: it is an extra, and compiles for seconds
    except ImportError as error:
        raise ImportError("embed_data needs umap-learn: pip install 'patterning_fast[umap]'") from error
    loadings = modes.table["data_loading"]
    if loadings.shape[1] <= neighbours:
        raise ValueError(f"neighbours must be fewer than the data, got {neighbours} and {loadings.shape[1]} data")
    projections = (loadings.values * modes.table["singular_value"].values[:, None]).T
    embedding = umap.UMAP(n_neighbors=neighbours, n_components=dimensions, random_state=seed, n_jobs=1)
    points = embedding.fit_transform(projections.astype(np.float32))
    data = loadings.isel(mode=0, drop=True)
    return xr.DataArray(points, dims=(*data.dims, "axis"), coords=data.coords, name="embedding")
