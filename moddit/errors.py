"""One tree of errors for everything that a user or a file can cause.

Messages read ``[component] what is wrong, got VALUE, want VALUE; what to do`` and name the file and the tensor.
Programs print ``error: MESSAGE`` and exit with 1.
"""


class ModditError(Exception):
    """Root of the tree; catch it to catch everything that moddit raises on purpose."""


class InputError(ModditError):
    """Something we were given cannot be used."""


class FormatError(InputError):
    """A file is not what it claims to be: truncated, malformed, unknown version or field."""


class MissingError(InputError):
    """A component, file or tensor is absent."""


class ShapeError(InputError):
    """A tensor or table has the wrong shape."""


class ValueRangeError(InputError):
    """A value is not allowed: NaN weights, a ratio outside its range."""


class UnsupportedError(InputError):
    """Well-formed, but an architecture, sampler or feature that moddit does not implement."""


class ParityError(ModditError):
    """A bundle does not compute what its checkpoint does."""


class OutputExistsError(ModditError):
    """The output is there already and may not be replaced."""


class StorageError(ModditError):
    """The output cannot be written: disk full, no permission."""
