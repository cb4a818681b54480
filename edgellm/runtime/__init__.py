"""Running a bundle: session, cache, decoding, the local backend."""
