"""Digital source type: where a picture's pixels come from, in the words of IPTC's vocabulary, as
XMP in the file.

The vocabulary is http://cv.iptc.org/newscodes/digitalsourcetype/. XMP is only searched for one word
of it, never parsed or copied: whatever else it says (places, names) stays behind.
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
# As an attribute, as an element, or as an element that points at a resource; with the address
# before the word or not.
_STATED = re.compile(
    rb"""DigitalSourceType(?:\s{0,9}=\s{0,9}["']|\s{1,9}rdf:resource\s{0,9}=\s{0,9}["']|>\s{0,99})"""
    rb"(?:https?://cv\.iptc\.org/newscodes/digitalsourcetype/)?([A-Za-z]{1,60})"
)


def code_of(address: object) -> str:
    """The word at the end of an address of the vocabulary; "" for anything else."""
    word = address.rpartition("/")[2] if isinstance(address, str) else ""
    return word if word in VOCABULARY else ""


def read_packet(xmp: bytes) -> str:
    """What an XMP packet says, or ""."""
    for found in _STATED.finditer(xmp[:_SEARCHED_BYTES]):
        if word := code_of(found[1].decode()):
            return word
    return ""


def packet(code: str) -> bytes:
    """An XMP packet that says this word of the vocabulary and nothing else."""
    if code not in VOCABULARY:
        raise ValueError(f"{code!r} is no digital source type")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta'
        ' xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><Iptc4xmpExt:DigitalSourceType>{_BASE}{code}</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket'
        ' end="r"?>'
    ).encode()
