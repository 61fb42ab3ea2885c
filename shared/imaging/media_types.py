"""The canonical name of each media type, and its aliases."""

_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/jpe": "image/jpeg",
    "image/jfif": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-jpeg": "image/jpeg",
    "image/x-jpg": "image/jpeg",
    "image/x-citrix-jpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-citrix-png": "image/png",
    "image/apng": "image/png",
    "image/vnd.mozilla.apng": "image/png",
    "image/x-webp": "image/webp",
    "image/x-avif": "image/avif",
    "image/avif-sequence": "image/avif",
    "image/x-gif": "image/gif",
    "image/tif": "image/tiff",
    "image/x-tif": "image/tiff",
    "image/x-tiff": "image/tiff",
    "application/tif": "image/tiff",
    "application/tiff": "image/tiff",
    "image/heif": "image/heic",
    "image/heic-sequence": "image/heic",
    "image/heif-sequence": "image/heic",
    "application/x-pdf": "application/pdf",
    "application/acrobat": "application/pdf",
    "applications/vnd.pdf": "application/pdf",
    "text/pdf": "application/pdf",
    "text/x-pdf": "application/pdf",
}


def canonical(declared: str) -> str:
    """Returns the canonical name: `image/jpeg` for ` Image/JPG; q=1`. An unknown type is only
    stripped of parameters and lower-cased."""
    name = declared.partition(";")[0].strip(" \t").lower()
    return _ALIASES.get(name, name)
