"""Errors a user can mend: the command line shows their message alone and exits with code 2."""


class UserError(Exception):
    """What was wrong, what was expected and what to type instead."""


class VersionError(UserError):
    """A file was written in a format that this version does not read."""


class ConfigError(UserError):
    """The composition cannot run as written."""


class DataError(UserError):
    """A data set is missing, incomplete or unreadable."""


class SizeError(DataError, ValueError):
    """A network takes or makes no images of this height and width."""


class TeacherError(UserError):
    """A teacher's weights do not fit, or it does not know what it should."""


class BudgetExceeded(UserError):
    """Asking the teacher once more would go past the agreed number of images."""


class TrainingError(UserError):
    """Training went where nothing can be learned from: a NaN, or a collapsed generator."""


class RankLost(UserError):
    """Another process of the same run is gone."""
