"""What the tests of remote start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import make_images

for package, extra in (("fsspec", "remote"), ("s3fs", "remote"), ("moto", "dev"), ("flask", "dev")):
    pytest.importorskip(package, reason=f"needs {package}: `pip install 'attlas[{extra}]'`")


from support_remote import S3, SECRET, forget_connections, run  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[S3]:
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "2")  # boto's own, before s3fs and attlas try again
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_connections()
        yield server
    forget_connections()
    server.stop()


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    yield server
    server.sound()


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("few"), 8)


@pytest.fixture(scope="session")
def whole(tiny_graph: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that every other one is compared with."""
    return Path(run(tiny_graph, few, tmp_path_factory.mktemp("whole") / "s.zarr").path)
