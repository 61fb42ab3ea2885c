"""Reads and writes the digital source type in XMP: the origin of a picture's pixels, in IPTC's
vocabulary.

The vocabulary is http://cv.iptc.org/newscodes/digitalsourcetype/. XMP is only searched for one word
of it, never parsed or copied, so that its other contents (places, names) stay behind.
"""

import re

VOCABULARY = frozenset(
    {
        "digitalCapture",
        "computationalCapture",
        "negativeFilm",
        "positiveFilm",
        "print",
        "humanEdits",
        "minorHumanEdits",
        "compositeWithTrainedAlgorithmicMedia",
        "algorithmicallyEnhanced",
        "softwareImage",
        "digitalArt",
        "digitalCreation",
        "dataDrivenMedia",
        "trainedAlgorithmicMedia",
        "algorithmicMedia",
        "screenCapture",
        "virtualRecording",
        "composite",
        "compositeCapture",
        "compositeSynthetic",
    }
)
_BASE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SEARCHED_BYTES = 1 << 20
# Matches an attribute, an element, or an element that points to a resource, with or without the
# address before the word.
_STATED = re.compile(
    rb"""DigitalSourceType(?:\s{0,9}=\s{0,9}["']|\s{1,9}rdf:resource\s{0,9}=\s{0,9}["']|>\s{0,99})"""
    rb"(?:https?://cv\.iptc\.org/newscodes/digitalsourcetype/)?([A-Za-z]{1,60})"
)


def code_of(address: object) -> str:
    """Returns the word at the end of an address of the vocabulary; "" for anything else."""
    word = address.rpartition("/")[2] if isinstance(address, str) else ""
    return word if word in VOCABULARY else ""


def read_packet(xmp: bytes) -> str:
    """Returns the source type that an XMP packet states, or ""."""
    for found in _STATED.finditer(xmp[:_SEARCHED_BYTES]):
        if word := code_of(found[1].decode()):
            return word
    return ""


def packet(code: str) -> bytes:
    """Returns an XMP packet that states only this source type."""
    if code not in VOCABULARY:
        raise ValueError(f"{code!r} is no digital source type")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta'
        ' xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><Iptc4xmpExt:DigitalSourceType>{_BASE}{code}</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket'
        ' end="r"?>'
    ).encode()
