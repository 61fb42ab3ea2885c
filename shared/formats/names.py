"""Names that people give, as they are shown, and as files are called after them. One rule for all
services.

`shown` is what is kept of a file's name. `of_file` makes one part of a path of it that every system
takes: for what is downloaded, and for what is in an archive.
"""

import re
import unicodedata

# What is invisible, or turns the reading direction, has no place in a name that people read:
# controls, format characters, lone surrogates, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = (  # some scripts and emoji are spelled with them, but only between other characters
    "\u200c\u200d"
)
_EDGES = re.compile(rf"^[\s{_JOINERS}]+|[\s{_JOINERS}]+$")
_EDGES_OF_FILE = re.compile(rf"^[\s.{_JOINERS}]+|[\s.{_JOINERS}]+$")
_MOST = 255
_FILE_BYTES = 150
_ENDING = 10
# Devices of Windows, whatever their ending.
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³])\s*(\..*)?")


def shown(name: str) -> str:
    """NFC, without what can't be seen, slashes replaced, at most 255 characters. Empty if nothing
    is left."""
    return trimmed(_flat(name)[:_MOST])


def of_file(name: str, ending: str = "") -> str:
    """One part of a path, at most 150 bytes: what is shown of the name, with what Windows forbids
    replaced, no dots or spaces at its ends, and no device's name. `ending`, or the name's own,
    stays whole. Never empty; what was made here stays as it is."""
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
    """Without spaces and joiners at its ends."""
    return _EDGES.sub("", text)


def without_hidden(text: str) -> str:
    """NFC, without what can't be seen."""
    seen = "".join(c for c in text if c in _JOINERS or unicodedata.category(c) not in _HIDDEN)
    return unicodedata.normalize("NFC", seen)


def _flat(name: str) -> str:
    return trimmed(without_hidden(name).replace("/", "_").replace("\\", "_"))
