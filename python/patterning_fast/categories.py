"""What the library warns of, by category: for `warnings.filterwarnings("error", category=pf.UnsettledWarning)`."""


class PatterningWarning(UserWarning):
    """Any warning of this library."""


class UnsettledWarning(PatterningWarning):
    """An estimate is from chains that had not settled, and not of the posterior; says what to change."""


class BlindWarning(PatterningWarning):
    """The loss has hardly a part in an estimate: it is geometry of a Gaussian ball around w*."""


class BiasWarning(PatterningWarning):
    """An estimate is off by more than its standard error says, for a numerical reason that is named."""


class BudgetWarning(PatterningWarning):
    """Chains, draws or seconds were spent before an estimate was known as well as wanted; says what was reached."""


class WholeModelWarning(PatterningWarning):
    """Chains run more of a model than they can change, which takes longer; says why."""


class DamagedWarning(PatterningWarning):
    """A file of finished work is damaged; says what is computed again."""


class DivergedWarning(PatterningWarning):
    """Some chains have diverged, and are left out of the estimate."""


class SubstitutionWarning(PatterningWarning):
    """What was given cannot be used as it is; says what is used instead."""
