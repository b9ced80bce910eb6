"""The formats of image files that are read: their names in Pillow, and their suffixes.

Pillow's other decoders are not used: some start other programs (EPS, WMF) or open further files (IPTC), some read no
pixels without a plugin (HDF5, GRIB, BUFR, MPEG), and the values of some have no black and white (FITS, SPIDER, PFM).
"""

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "CUR": (".cur",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "MSP": (".msp",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "FLI": (".fli", ".flc"),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "PIXAR": (".pxr",),
    # Known by no mark at its beginning, so it comes last.
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
"""Pillow's name of each format, in the order in which they are tried, and its suffixes in lower case."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The suffixes that `rlpips_jax.image_paths` lists, in upper or lower case."""
