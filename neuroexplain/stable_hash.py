"""One hash for everything that must be the same on every machine and in every process."""

import hashlib


def stable_hash(*parts: int | str) -> int:
    """Hash integers and strings to an unsigned 64-bit integer: BLAKE2b over the parts' text, joined by NUL.

    Unlike `hash`, it does not depend on the process. Unlike a random generator, it does not depend on the
    order of its calls.
    """
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
