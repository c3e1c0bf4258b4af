"""Rewrite the error messages of pydantic in the words of laconic's errors."""

PLAIN = {
    "a valid tuple": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid dictionary": "a mapping",
    "a dictionary": "a mapping",
    ", got a number with a fractional part": "",
}


def in_words(message: str) -> str:
    """The requirement in a message of pydantic, in words instead of names of Python types.

    >>> in_words("Input should be a valid integer, unable to parse string as an integer")
    'a whole number'
    """
    requirement = message[:1].lower() + message[1:]
    requirement = requirement.removeprefix("input should be ").partition(", unable to ")[0]
    for python, words in PLAIN.items():
        requirement = requirement.replace(python, words)
    return requirement.partition(" or an instance of ")[0]
