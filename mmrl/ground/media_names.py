"""Which file names are taken for images and for clips, by suffix in lower case."""

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
    ".jp2",
)
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".flv",
    ".ts",
    ".mpg",
    ".mpeg",
    ".m2ts",
    ".mts",
    ".wmv",
    ".ogv",
    ".3gp",
)
