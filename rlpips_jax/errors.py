"""Every error this library raises on purpose; each says what was wrong and what would be right."""


class RlpipsError(Exception):
    """Base of all errors of this library."""


class ImageError(RlpipsError, ValueError):
    """An image (or a batch of them) cannot be compared: its shape, type, range or values are wrong."""


class ImageFileError(RlpipsError, OSError):
    """An image file cannot be read or written: missing, damaged, too large, or of an unknown format."""


class Locked(RlpipsError):
    """Another process holds the lock of a file or folder; the message names both."""


class MetricError(RlpipsError, ValueError):
    """A metric was asked for, or used, in a way that has no meaning."""


class UnknownMetric(MetricError, LookupError):
    """No metric has this name; the message gives the nearest names."""


class WeightsError(RlpipsError):
    """Base of the errors about weights."""


class WeightsNotFound(WeightsError, LookupError):
    """Weights are nowhere on this machine and could not be downloaded; the message says how to get them."""


class WeightsCorrupt(WeightsError, OSError):
    """A weight file is damaged, cut off, tampered with, or of an unknown format."""


class WeightsMismatch(WeightsError, ValueError):
    """A readable checkpoint does not fit: tensors missing, left over, of another shape, negative heads or floors."""


class UnsafeCheckpoint(WeightsError, ValueError):
    """A pickle asked for something other than tensors and arrays; nothing of it was run."""


class ValueRangeWarning(UserWarning):
    """The images fit the stated value range but look as if they were in another one."""


class SpreadsheetError(RlpipsError, OSError):
    """An `.xlsx` file cannot be read."""


class DistortionError(RlpipsError, ValueError):
    """A distortion was asked for that does not exist, or at a strength outside [0, 1]."""


class AttackError(RlpipsError, ValueError):
    """An attack was asked for in a way that has no meaning; the message says what would have one."""


class TripletsError(RlpipsError, ValueError):
    """Judged triplets, or their distances, cannot be used: missing files, wrong shapes, values or counts."""


class CertificateError(RlpipsError, ValueError):
    """A certificate was asked for by numbers that have no meaning, or of something that is no ranking."""


class ReportError(RlpipsError, ValueError):
    """A page or a chart was asked for in a way that cannot be shown: no points, or rows of different lengths."""


class GeometryError(RlpipsError, ValueError):
    """An average or a path was asked for in a way that has no meaning, or its descent came to no finite number."""


class SnapshotError(RlpipsError, OSError):
    """A snapshot of a descent cannot be written or read, is damaged, or is of another run."""


class CheckpointError(RlpipsError, OSError):
    """A checkpoint of a training run cannot be written or read: a full disk, another run's folder, all damaged."""


class LogError(RlpipsError, OSError):
    """The log of a training run cannot be written, as on a full disk; the message names the file and the checkpoint."""


class CheckpointMismatch(RlpipsError, ValueError):
    """A whole checkpoint is of another state than the program's: other arrays, shapes or types."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was set aside, and an older one takes its place."""


class ImageFileWarning(UserWarning):
    """An image file holds more than one opaque, upright image; the message says what was made of it."""


class ResultsFileError(RlpipsError, OSError):
    """A results file cannot be written, is of another run, or another run is writing to it."""


class PairsWarning(UserWarning):
    """Some image files are not part of any pair that can be compared; the message says how many."""


class TrainingError(RlpipsError, ValueError):
    """A training run cannot be done as it is told; the message names the option, or the step that failed."""


class EnsembleError(MetricError):
    """An E-LPIPS was asked for in a way that has no meaning: without a key, or with transformations that do not fit."""
