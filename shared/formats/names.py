"""Cleans names that people give, for display and for files. All services share these rules.

`shown` makes the stored form of a file's name. `of_file` makes a file name that every system
accepts, for downloads and for archives.
"""

import re
import unicodedata

# Invisible characters and those that change the reading direction don't belong in a name: controls,
# format characters, lone surrogates, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = (  # some scripts and emoji need them, but only between other characters
    "\u200c\u200d"
)
_EDGES = re.compile(rf"^[\s{_JOINERS}]+|[\s{_JOINERS}]+$")
_EDGES_OF_FILE = re.compile(rf"^[\s.{_JOINERS}]+|[\s.{_JOINERS}]+$")
_MOST = 255
_FILE_BYTES = 150
_ENDING = 10
# Device names of Windows, with any ending.
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³])\s*(\..*)?")


def shown(name: str) -> str:
    """Returns the name in NFC without invisible characters, with slashes replaced, cut to 255
    characters. Empty if nothing is left."""
    return trimmed(_flat(name)[:_MOST])


def of_file(name: str, ending: str = "") -> str:
    """Returns one part of a path, at most 150 bytes: the name as shown, with characters that
    Windows forbids replaced, without dots or spaces at its ends, and no device's name. `ending`, or
    the name's own ending, stays whole. Never empty; idempotent."""
    text = _EDGES_OF_FILE.sub("", re.sub(r'[:*?"<>|]', "_", _flat(name))) or "_"
    if not ending:
        stem, dot, own = text.rpartition(".")
        if stem and len(own) <= _ENDING:
            text, ending = stem, dot + own
    if _DEVICE.fullmatch(text + ending):
        text = f"_{text}"
    room = _FILE_BYTES - len(ending.encode())
    if len(text.encode()) > room:
        text = _EDGES_OF_FILE.sub("", text.encode()[:room].decode(errors="ignore"))
    return text + ending


def trimmed(text: str) -> str:
    """Returns the text without spaces and joiners at its ends."""
    return _EDGES.sub("", text)


def without_hidden(text: str) -> str:
    """Returns the text in NFC without invisible characters, except joiners."""
    seen = "".join(c for c in text if c in _JOINERS or unicodedata.category(c) not in _HIDDEN)
    return unicodedata.normalize("NFC", seen)


def _flat(name: str) -> str:
    return trimmed(without_hidden(name).replace("/", "_").replace("\\", "_"))
