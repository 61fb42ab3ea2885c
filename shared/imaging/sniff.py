"""Determines a file's type by its first bytes, and refuses files that are of a second type too.
Uses no decoder."""

import mmap
import re
import struct
import zipfile
from pathlib import Path

import filetype

from shared.imaging.extent import end_of_picture
from shared.imaging.model import ImageRejected, Reason

HEAD_BYTES = 4096
PDF = "application/pdf"
HEIC = "image/heic"
ALLOWED = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/tiff", PDF)

_RESEND = "Send JPEG, PNG, WebP, AVIF, GIF, TIFF or PDF."
_EXPORT = "Export it as JPEG, PNG or TIFF, and send that."
_DEVELOP = "Develop it and send a JPEG, PNG or TIFF."
# Formats that people often take for a common picture format, by their first bytes.
_OTHERS = (
    (0, (b"II+\0", b"MM\0+"), "a BigTIFF", "Save it as an ordinary TIFF, and send that."),
    (8, (b"CR\2\0",), "a camera's raw file (CR2)", _DEVELOP),
    (0, (b"FUJIFILMCCD-RAW",), "a camera's raw file (RAF)", _DEVELOP),
    (0, (b"IIRO", b"IIRS", b"MMOR"), "a camera's raw file (ORF)", _DEVELOP),
    (0, (b"IIU\0",), "a camera's raw file (RW2)", _DEVELOP),
    (4, (b"ftypcrx ",), "a camera's raw file (CR3)", _DEVELOP),
    (0, (b"8BPS\0\1",), "a Photoshop document (PSD)", _EXPORT),
    (0, (b"8BPS\0\2",), "a large Photoshop document (PSB)", _EXPORT),
    (0, (b"gimp xcf",), "a GIMP document (XCF)", _EXPORT),
    (0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000", _EXPORT),
    (0, (b"\0\0\0\x0cJXL ", b"\xff\x0a"), "a JPEG XL", _EXPORT),
    (0, (b"II\xbc\x01",), "a JPEG XR", _EXPORT),
    (0, (b"v/1\1",), "an OpenEXR picture", _EXPORT),
    (0, (b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR picture", _EXPORT),
    (0, (b"BM",), "a BMP", _EXPORT),
    (0, (b"\0\0\1\0", b"\0\0\2\0"), "an icon or a cursor (ICO, CUR)", _EXPORT),
    (0, (b"icns",), "an icon (ICNS)", _EXPORT),
    (0, (b"qoif",), "a QOI picture", _EXPORT),
    (0, (b"DDS ",), "a DDS texture", _EXPORT),
    (0, (b"\x8aMNG", b"\x8bJNG"), "an MNG or a JNG", _EXPORT),
    (0, (b"BPG\xfb",), "a BPG", _EXPORT),
    (0, (b"FLIF",), "a FLIF", _EXPORT),
    (0, (b"\x0a\x05\x01\x08",), "a PCX", _EXPORT),
    (
        0,
        tuple(b"P%d%c" % (kind, blank) for kind in range(1, 8) for blank in b"\n\r \t"),
        "a Netpbm picture",
        _EXPORT,
    ),
    (0, (b"PF\n", b"Pf\n"), "a PFM picture", _EXPORT),
    (0, (b"AT&TFORM",), "a DjVu document", "Export its pages as pictures, or the whole as a PDF."),
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript (EPS)", "Export it as a PDF or as a picture."),
    (0, (b"\xd7\xcd\xc6\x9a", b"\1\0\x09\0"), "a Windows metafile (WMF)", _EXPORT),
    (40, (b" EMF",), "a Windows metafile (EMF)", _EXPORT),
    (0, (b"SIMPLE  =",), "a FITS file", _EXPORT),
    (128, (b"DICM",), "a DICOM file", _EXPORT),
)
_EXECUTABLE_HEADS = (
    b"\x7fELF",
    b"MZ",
    b"#!",
    b"\x00asm",
    b"dex\n",
    b"\xca\xfe\xba\xbe",
    *(bytes.fromhex(mach_o) for mach_o in ("feedface", "feedfacf", "cefaedfe", "cffaedfe")),
)
_ARCHIVES = {
    f"application/{name}"
    for name in (
        "zip",
        "gzip",
        "zstd",
        "x-tar",
        "x-bzip2",
        "x-xz",
        "x-lzip",
        "x-7z-compressed",
        "x-rar-compressed",
    )
}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_OTHER_BRANDS = {b"mif1", b"msf1", b"M4A ", b"M4B "}
_BLANKS = b"\xef\xbb\xbf \t\r\n\f\0"
_MARKUP = re.compile(rb"<(?:script|html|iframe)[\s>/]|<!doctype\s+html|<\?php\s", re.IGNORECASE)


def sniff(head: bytes) -> str:
    """Returns the media type of a file that starts with `head` (its first HEAD_BYTES): one of
    ALLOWED, or HEIC.

    Raises ImageRejected for everything else, with a specific reason for what people send by mistake
    or malice.
    """
    for at, marks, name, advice in _OTHERS:
        if head.startswith(marks, at):
            raise ImageRejected(
                Reason.TYPE_NOT_ALLOWED, f"The file is {name}, which is not accepted. {advice}"
            )
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    if head.startswith(_EXECUTABLE_HEADS):
        raise ImageRejected(Reason.EXECUTABLE, f"The file is a program, not a picture. {_RESEND}")
    if _text_start(head).startswith("<"):
        raise ImageRejected(
            Reason.ACTIVE_CONTENT,
            "The file is SVG, HTML or other markup, which can carry scripts. Render it to pixels"
            f" first. {_RESEND}",
        )
    # Viewers skip blank lines before the header, and so does our PDF reader.
    if head.lstrip(_BLANKS).startswith(b"%PDF-"):
        return PDF
    guess = filetype.guess(head)
    mime: str = guess.mime if guess else ""
    if mime == "image/apng":  # read as a PNG: only the first frame is used
        return "image/png"
    if mime in ALLOWED:
        return str(mime)
    if mime.startswith("video/"):
        raise _video()
    if mime in _ARCHIVES:
        raise ImageRejected(
            Reason.TYPE_NOT_ALLOWED,
            f"The file is an archive ({mime}). Unpack it and send its files.",
        )
    raise ImageRejected(
        Reason.TYPE_NOT_ALLOWED, f"The file type ({mime or 'unknown'}) is not accepted. {_RESEND}"
    )


def refuse_polyglot(path: Path, mime: str) -> None:
    """Refuses an image that starts as a script, is followed by a web page or script, or is also a
    ZIP archive.

    Decoders ignore bytes outside the picture, so such a file is a valid image. Variants are clean
    because they are encoded anew, but the original would be dangerous if a browser ever ran it.
    Text within the picture, such as a prompt or a caption, may contain tags: originals are served
    with their picture's type and `nosniff`, so no browser looks for a page in them.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        script = _opens_as_script(content[:16], mime)
        # Few files contain a tag at all; only for these is the end of the picture located.
        appended = _MARKUP.search(content) and _MARKUP.search(
            content, end_of_picture(content, mime)
        )
    if script:
        raise ImageRejected(
            Reason.ACTIVE_CONTENT,
            "The image is also a script. Export it again from an image editor.",
        )
    if appended:
        raise ImageRejected(
            Reason.ACTIVE_CONTENT,
            "HTML or script follows the end of the picture. Export it again from an image editor.",
        )
    if _is_archive(path):
        raise ImageRejected(
            Reason.TYPE_NOT_ALLOWED,
            "The image is also a ZIP archive. Export it again from an image editor.",
        )


def _iso_media(head: bytes) -> str:
    # filetype would trust the box's own length here and collect up to a billion brands.
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "image/avif"
    if brands & _HEIC_BRANDS:
        return HEIC
    if brands & _OTHER_BRANDS:
        raise ImageRejected(
            Reason.TYPE_NOT_ALLOWED, f"This kind of MPEG-4 container is not accepted. {_RESEND}"
        )
    raise _video()


def _video() -> ImageRejected:
    return ImageRejected(
        Reason.VIDEO_NOT_SUPPORTED, f"The file is a video; videos aren't supported. {_RESEND}"
    )


def _text_start(head: bytes) -> str:
    """Returns the start of the file's text. Skips only blanks: the length of a JPEG's segment may
    be a `<`."""
    blanks = " \t\r\n\f\0"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", errors="ignore").lstrip(blanks)
    return head.removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip(blanks)


def _opens_as_script(head: bytes, mime: str) -> bool:
    """Returns whether the header also starts a JavaScript statement: the type's letters are a name,
    and the numbers after them spell a comment or an assignment."""
    if mime == "image/gif":  # the screen width 10,799, or one whose bytes are `=` and printable
        return head[6:8] == b"/*" or (head[6:7] == b"=" and 0x20 <= head[7] < 0x7F)
    # A JFIF segment of 12,074 bytes. Every writer makes 16 bytes, plus a thumbnail that no program
    # writes any more.
    return mime == "image/jpeg" and head[2:6] == b"\xff\xe0/*"


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, OSError):
        return False
