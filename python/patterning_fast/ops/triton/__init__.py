"""The kernels in Triton, for GPUs without the compiled CUDA forms; imported when the first of them runs.

They never wait for the GPU, allocate small workspaces alone and can be captured in a CUDA graph. So what only the GPU
knows is not checked: rows and groups that do not exist are left alone, and a label that does not exist gives NaN.
Every sum has a fixed order, and floats are never fused but where the C++ says fma: what a step does to a parameter
has the bits of the C++. Loops to a number that is no constant are `while` loops, as Triton 3.6's interpreter cannot
take its range with numpy 2.4.
"""
