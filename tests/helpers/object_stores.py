"""Servers of both protocols of object stores on 127.0.0.1, with requests that fail, stall or are throttled on demand.

They are the emulators `gcp-storage-emulator` and `moto`. The first one has no preconditions, which are added here.
"""

import contextlib
import functools
import http.server
import json
import logging
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http import HTTPStatus

BUCKET = "bucket"
CLIENT = {"EPATH_USE_TF": "false", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "FSSPEC_GS_TOKEN": "anon"}
"""Variables of a client of either server: no TensorFlow, and no questions to Google's own servers."""


class Faults:
    """Which requests do not get their answer."""

    def __init__(self):
        self._rules: list[tuple[Callable[[str, str], bool], int | float | None, list[int]]] = []
        self.requests: list[tuple[str, str]] = []
        """The method and the URL of each request so far."""

    def add(self, matches: Callable[[str, str], bool], fault: int | float, times: int) -> None:
        """The next `times` requests for which `matches(method, url)` fail.

        Args:
          matches: which requests.
          fault: an HTTP status (int), or seconds (float) for which there is no answer.
          times: how many of them.
        """
        self._rules.append((matches, fault, [times]))

    def clear(self) -> None:
        """Answers all requests again."""
        self._rules.clear()

    def next(self, method: str, url: str) -> int | float | None:
        """The fault of a request; None where it is answered."""
        self.requests.append((method, url))
        for matches, fault, left in self._rules:
            if left[0] > 0 and matches(method, url):
                left[0] -= 1
                return fault
        return None


class Server:
    """A running server: `url` and `faults`, and the environment of a client."""

    def __init__(self, scheme: str, variables: dict[str, str], put: Callable, listed: Callable, empty: Callable):
        self.scheme, self.variables = scheme, CLIENT | variables
        self.faults = Faults()
        self.put: Callable[[str, bytes], None] = put
        """Writes an object of the bucket, by its key."""
        self.listed: Callable[[], dict[str, bytes]] = listed
        """Returns all objects of the bucket by key."""
        self.empty: Callable[[], None] = empty
        """Removes all objects."""

    def path(self, key: str) -> str:
        """The path of a key in the bucket."""
        return f"{self.scheme}://{BUCKET}/{key}"


@contextlib.contextmanager
def gcs() -> Iterator[Server]:
    """A server of Google Cloud Storage's protocol with an empty bucket."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import buckets, objects
    from gcp_storage_emulator.storage import Storage

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # It reports each object that is not there.
    storage, lock, wanted = _conditional(Storage)(use_memory_fs=True), threading.RLock(), threading.local()
    storage.wanted = wanted
    buckets.create_bucket(BUCKET, storage)
    storage.buckets[BUCKET].pop("softDeletePolicy", None)

    class Handler(emulator.RequestHandler):
        def handle_one(self, method: str) -> None:
            fault = found.faults.next(method, self.path)
            if isinstance(fault, float):
                time.sleep(fault)
                self.close_connection = True
                return
            if fault is not None:
                self._fail(HTTPStatus(fault))
                return
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            wanted.generation = query.get("ifGenerationMatch", [None])[0]
            if method in ("POST", "PUT"):  # Reads the request before others have to wait for it.
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile = _Body(self.rfile.read(length) if length else b"", self.rfile)
            with lock:
                try:
                    emulator.Router(self).handle(method)
                except _PreconditionFailed:
                    self._fail(HTTPStatus.PRECONDITION_FAILED)

        def _fail(self, status: HTTPStatus) -> None:
            content = json.dumps({"error": {"code": status.value, "message": status.phrase}}).encode()
            self.send_response(status.value, status.phrase)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def end_headers(self) -> None:
            # What a download says of its object, which TensorStore reads.
            key = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.partition("/o/")[2])
            if self.command == "GET" and key in storage.objects.get(BUCKET, {}):
                self.send_header("x-goog-generation", storage.objects[BUCKET][key]["generation"])
            super().end_headers()

    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        setattr(Handler, f"do_{method}", functools.partialmethod(Handler.handle_one, method))
    httpd = _ThreadingServer(("127.0.0.1", 0), functools.partial(Handler, storage))
    url = f"http://127.0.0.1:{httpd.server_port}"

    def put(key, content):
        entry = objects._make_object_resource(url, BUCKET, key, "text/plain", str(len(content)))
        with lock:
            wanted.generation = None
            storage.create_file(BUCKET, key, content, objects._checksums(content, entry))

    found = Server(
        "gs",
        {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_CLOUD_PROJECT": "project"},
        put,
        lambda: {key: storage.get_file(BUCKET, key) for key in sorted(storage.objects.get(BUCKET, {}))},
        lambda: [storage._hard_delete_file(BUCKET, key) for key in list(storage.objects.get(BUCKET, {}))],
    )
    with _serving(httpd):
        yield found


class _PreconditionFailed(Exception):
    pass


class _Body:
    """A request's body, already read, and the rest of its connection."""

    def __init__(self, content: bytes, rest):
        self._content, self._rest = content, rest

    def read(self, size: int) -> bytes:
        read, self._content = self._content[:size], self._content[size:]
        return read

    def __getattr__(self, name: str):
        return getattr(self._rest, name)


def _conditional(base: type) -> type:
    """The emulator's storage with the precondition `ifGenerationMatch` of the request that a thread answers."""

    class Conditional(base):
        def _check(self, bucket: str, name: str) -> None:
            generation = getattr(self.wanted, "generation", None)
            there = self.objects.get(bucket, {}).get(name, {}).get("generation", "0")
            if generation is not None and generation != there:
                raise _PreconditionFailed

        def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
            self._check(bucket_name, file_name)
            super().create_file(bucket_name, file_name, content, file_obj, file_id)

        def delete_file(self, bucket_name, file_name):
            self._check(bucket_name, file_name)
            super().delete_file(bucket_name, file_name)

    return Conditional


@contextlib.contextmanager
def s3() -> Iterator[Server]:
    """A server of S3's protocol with an empty bucket."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application, lock = DomainDispatcherApplication(create_backend_app), threading.RLock()

    class Quiet(WSGIRequestHandler):
        def log(self, *_) -> None:
            pass

    def answer(environment, start):
        url = environment.get("REQUEST_URI") or environment["PATH_INFO"]
        fault = found.faults.next(environment["REQUEST_METHOD"], url)
        if isinstance(fault, float):
            time.sleep(fault)
            fault = 500
        if fault is not None:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            status, code = HTTPStatus(fault), {503: "SlowDown", 403: "AccessDenied"}.get(fault, "InternalError")
            start(f"{status.value} {status.phrase}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{status.phrase}</Message></Error>".encode()]
        with lock:
            return list(application(environment, start))

    httpd = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet)
    url = f"http://127.0.0.1:{httpd.port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}

    def client():
        return boto3.client("s3", endpoint_url=url, **keys)

    def listed():
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {name: client().get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in sorted(names)}

    variables = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    variables |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}

    def put(key, content):
        client().put_object(Bucket=BUCKET, Key=key, Body=content)

    def empty():
        for key in listed():
            client().delete_object(Bucket=BUCKET, Key=key)

    found = Server("s3", variables, put, listed, empty)
    with _serving(httpd):
        client().create_bucket(Bucket=BUCKET)
        yield found


class _ThreadingServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """Says nothing of a client that was killed."""


@contextlib.contextmanager
def _serving(httpd) -> Iterator[None]:
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextlib.contextmanager
def used_by_this_process(server: Server) -> Iterator[Server]:
    """While entered, this process and those that it starts are clients of the server."""
    before = {name: os.environ.get(name) for name in server.variables}
    os.environ.update(server.variables)
    forget_clients()
    try:
        yield server
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        forget_clients()


def forget_clients() -> None:
    """Lets the next use of a path make its client again, from the variables of then."""
    import fsspec
    from etils.epath import backend, gpath

    for settings in fsspec.config.conf.values():
        settings.pop("token", None)
    fsspec.config.set_conf_env(fsspec.config.conf)
    for name in ("gcs", "s3"):
        fsspec.get_filesystem_class(name).clear_instance_cache()
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    gpath._is_tf_installed.cache_clear()
