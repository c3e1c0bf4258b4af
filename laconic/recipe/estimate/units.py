"""Numbers of bytes and seconds as a person reads them."""

MINUTE, HOUR = 60, 3600


def format_bytes(count: int) -> str:
    """A number of bytes with two or three digits and its unit.

    Example:
        >>> format_bytes(2_345_000_000), format_bytes(67_400_000), format_bytes(3_000)
        ('2.3 GB', '67 MB', '0.003 MB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.1g} MB"


def format_seconds(seconds: float) -> str:
    """A duration in seconds, minutes or hours.

    Example:
        >>> format_seconds(7.4), format_seconds(200), format_seconds(9000)
        ('7 s', '3.3 min', '2.5 h')
    """
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.1f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
