"""The URLs of the servers that answer together: typed, or in a file that may change while a command runs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from neuroexplain.errors import EngineError

LARGEST_FILE = 2**20  # bytes of a list; more is another file by mistake


class ServerList:
    """The servers' URLs, each once, in their order."""

    def __init__(self, urls: list[str], file: Path | None = None) -> None:
        self.urls, self.file = urls, file
        self._stamp = None if file is None else _stamp(file)

    @classmethod
    def parse(cls, text: str, option: str = "--server") -> ServerList:
        """The list in `--server URL,URL`. Raises EngineError, with the option's name, for what is no URL."""
        urls = [part.strip() for part in text.split(",") if part.strip()]
        if not urls:
            raise EngineError(
                f"{option} {text!r} names no server. Give URLs, like  http://gpu-1:8000,http://gpu-2:8000"
            )
        return cls(_distinct([(url, option) for url in urls]))

    @classmethod
    def read(cls, file: Path) -> ServerList:
        """The list in a file: a URL a line, # begins a comment. Raises EngineError for what is none."""
        stamp = _stamp(file)
        servers = cls(_read_urls(file), file)
        servers._stamp = stamp
        return servers

    @property
    def only_url(self) -> str | None:
        """The URL, if it is the only one and stays so."""
        return self.urls[0] if self.file is None and len(self.urls) == 1 else None

    def changed(self) -> bool:
        """Whether the file is another one than when it was read last. A file that is away has not changed."""
        stamp = None if self.file is None else _stamp(self.file)
        return stamp is not None and stamp != self._stamp

    def read_again(self) -> None:
        """Take the file's URLs. Keeps those from before, and raises EngineError, if it holds none."""
        assert self.file is not None
        self._stamp = _stamp(self.file)
        self.urls = _read_urls(self.file)


def normalize_url(url: str) -> str:
    """The URL that ends with /v1, however it was typed."""
    url = url.strip().rstrip("/").removesuffix("/models")
    if "://" not in url:
        url = f"http://{url}"
    return url if url.endswith("/v1") else f"{url}/v1"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content; None if it cannot be looked at."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_urls(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"Cannot read the list of servers {file}: {error}") from error
    if len(content) > LARGEST_FILE:
        raise EngineError(f"{file} is larger than {LARGEST_FILE:,} bytes, so it is no list of servers.")
    places = []
    for number, line in enumerate(lines, 1):
        url = line.split("#", 1)[0].strip()
        if url:
            places.append((url, f"{file}, line {number}"))
    if not places:
        raise EngineError(f"{file} lists no server. Write a URL a line, like  http://gpu-1:8000/v1")
    return _distinct(places)


def _distinct(places: list[tuple[str, str]]) -> list[str]:
    """Each URL once, normalized. places: (url, where it stands)."""
    urls = []
    for url, place in places:
        if "@" in url:
            raise EngineError(
                f"{place} holds a name or a key before @. Leave it out, and set NEUROEXPLAIN_API_KEY."
            )
        normal = normalize_url(url)
        try:
            parts = urlsplit(normal)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # no port, or half of an IPv6 address
            is_url = False
        if not is_url or not normal.isprintable() or " " in normal:
            raise EngineError(f"{place}: {url[:200]!r} is no URL. Write it like  http://gpu-1:8000/v1")
        urls.append(normal)
    return list(dict.fromkeys(urls))
