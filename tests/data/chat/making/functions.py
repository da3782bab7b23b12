"""A module whose functions conversations are made of; it is read, never imported."""

# ruff: noqa: F821

raise RuntimeError("nobody imports this")


def get_weather(city: str, days: int = 3, *, unit: "Literal['C', 'F']" = "C") -> dict:
    """Forecast for a city.

    More about it, which no model needs.

    Args:
        city: Name of the city.
        days (int): How many days ahead.
    """


async def send_mail(to: str, subject: str, urgent: bool | None = None):
    """Send a mail.

    :param to: Who gets it.
    :param str subject: What it is about.
    """


def total(values: list[float], weights: Optional[Sequence[float]] = None):
    """Sum of values.

    Parameters
    ----------
    values : list of float
        What is added.

    Returns
    -------
    float
        The sum.
    """


def open_thing(
    path: Path, mode: typing.Union[None, str] = None, hook: Callable = print
):
    """Open a file."""


def ping():
    """Say whether the server is there."""


def needs_more(callback: Callable[[int], int], n: int):
    """Cannot be called with JSON."""


def untyped(a, b=1):
    """Has no annotations."""


def silent(a: int):
    pass


def _private(a: int):
    """Not for others."""
