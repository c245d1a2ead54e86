"""One hash for everything that must come out alike on every machine and in every run."""

import hashlib


def stable_hash(*parts: int | str) -> int:
    """Hash integers and strings to an unsigned 64-bit integer: BLAKE2b over the parts' text, joined by NUL.

    Unlike `hash`, it does not depend on the process; unlike a random generator, not on the order of use.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
