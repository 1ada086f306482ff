"""Every error that vrray raises on purpose. Messages say what was found, with its numbers, and what to change."""


class VrrayError(Exception):
    """Base of all errors below; a job prints its message without a stack trace."""


class SpecError(VrrayError, ValueError):
    """An option is unknown, of the wrong type, or contradicts another one."""


class RegionError(VrrayError, ValueError):
    """A region or placement does not fit the decoder."""


class PruningError(VrrayError, ValueError):
    """A pruning plan would remove a protected layer, or more layers than there are."""


class DataError(VrrayError):
    """A record, an image or a task file is missing or malformed."""


class ModelError(VrrayError):
    """A model cannot be found, built, loaded or matched with a delta."""


class StoreError(VrrayError):
    """An artefact is missing, incomplete or damaged."""


class TrainingError(VrrayError):
    """A training went wrong in a way that repeating it would not mend."""


class BudgetError(VrrayError):
    """The budget of a run is spent before what all its trials need is there."""


class BusyError(VrrayError):
    """Another driver is at the same sweep."""


class ClusterError(VrrayError):
    """The Ray cluster cannot hold what was asked of it."""
