"""A stand-in of the Hub on loopback: the requests that huggingface_hub makes to write and read a repository."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OWNER, TOKEN = "someone", "hf_of_someone"
LARGE = ".safetensors"


@dataclass
class Repository:
    private: bool
    commits: dict = field(default_factory=dict)  # hexadecimal digits -> {path: bytes}
    refs: dict = field(default_factory=dict)  # branch or refs/pr/N -> commit
    messages: dict = field(default_factory=dict)

    def commit(self, ref, files, message=""):
        previous = self.refs.get(ref) or self.refs.get("main", "")
        content = {**self.commits.get(previous, {}), **files}
        oid = hashlib.sha1(repr((previous, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid], self.refs[ref], self.messages[oid] = content, oid, message
        return oid

    def resolve(self, revision):
        return self.refs.get(revision, revision if revision in self.commits else None)


class Hub:
    """Repositories, and all that was asked: (method, path, token or None). Use it in a `with` statement.

    Attributes:
        damage: is called with the bytes of a file before they are sent.
        gated: names of repositories that nobody may read.
        locked: names of repositories that nobody may write to.
        may_create: whether anybody may make repositories.
    """

    def __init__(self):
        self.repositories, self.objects, self.asked, self.cards, self.unknown = {}, {}, [], [], []
        self.damage = bytes
        self.gated, self.locked, self.may_create = set(), set(), True

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.store = f"http://localhost:{self.server.server_port}/store"  # another host to clients, as the real one
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def paths(self, method):
        return [path for asked, path, _ in self.asked if asked == method]


def blob_name(data):
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve()

    def do_HEAD(self):
        self.serve()

    def do_POST(self):
        self.serve()

    def do_PUT(self):
        self.serve()

    def serve(self):
        url = urlsplit(self.path)
        self.path, self.query = url.path, parse_qs(url.query)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if self.path == "/api/agent-harnesses":  # the library asks by itself, once a day
            return self.say(404, {})
        self.hub.asked.append((self.command, self.path, self.token))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, serve in ROUTES:
            found = re.fullmatch(pattern, self.path)
            if self.command in method and found:
                return serve(self, *map(unquote, found.groups()))  # a branch may have a slash in it, quoted
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.say(501, {"error": "not known here"})

    def say(self, status, content=None, error=None, headers=(), data=None):
        data = json.dumps(content).encode() if data is None else data
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ------------------------------------------------------------------ who may do what

    def writable(self, name):
        """The repository, or None once the refusal was sent."""
        if self.token != TOKEN:
            self.say(401, {"error": "Invalid username or password."})
        elif name in self.hub.locked:
            self.say(403, {"error": "Forbidden"})
        elif name not in self.hub.repositories:
            self.say(404, {"error": "Repository not found"}, "RepoNotFound")
        else:
            return self.hub.repositories[name]
        return None

    def readable(self, name):
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token != TOKEN):
            self.say(401 if self.token is None else 404, {"error": "Repository not found"}, "RepoNotFound")
        elif name in self.hub.gated:
            self.say(403, {"error": "gated"}, "GatedRepo")
        else:
            return found
        return None

    # ------------------------------------------------------------------ writing

    def create(self):
        asked = json.loads(self.body)
        if self.token != TOKEN:
            return self.say(401, {"error": "Invalid username or password."})
        if not self.hub.may_create:
            return self.say(403, {"error": "You may not create repositories here"})
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        if name in self.hub.repositories:
            return self.say(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[name] = Repository(private)
        self.hub.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.say(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self):
        self.hub.cards.append(json.loads(self.body)["content"])
        self.say(200, {"errors": [], "warnings": []})

    def branch(self, name, branch):
        repository = self.writable(name)
        if repository is None:
            return None
        if branch in repository.refs:
            return self.say(409, {"error": "Reference already exists"})
        repository.refs[branch] = repository.refs["main"]
        return self.say(200, {})

    def preupload(self, name, revision):
        repository = self.writable(name)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            return self.say(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        files = []
        for asked in json.loads(self.body)["files"]:
            there = repository.commits[commit].get(asked["path"])
            large = asked["path"].endswith(LARGE)
            name_of = (lambda data: hashlib.sha256(data).hexdigest()) if large else blob_name
            files.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if there is None else name_of(there),
                }
            )
        return self.say(200, {"files": files})

    def batch(self, name):
        if self.writable(name) is None:
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.store}/{asked['oid']}"
            action = {} if asked["oid"] in self.hub.objects else {"actions": {"upload": {"href": href}}}
            objects.append({**asked, **action})
        self.say(200, {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/json"})

    def store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.say(400, {"error": "another content"})
        self.hub.objects[oid] = self.body
        return self.say(200, {})

    def commit(self, name, revision):
        repository = self.writable(name)
        if repository is None:
            return None
        files, message = {}, ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                return self.say(400, {"error": f"no {item['key']} here"})
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        pulls = self.query.get("create_pr") == ["1"]
        oid = repository.commit(f"refs/pr/{number}" if pulls else revision, files, message)
        pull = f"{self.hub.url}/{name}/discussions/{number}" if pulls else None
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return self.say(200, {"commitUrl": url, "commitOid": oid, "pullRequestUrl": pull, "success": True})

    # ------------------------------------------------------------------ reading

    def info(self, name, revision="main"):
        repository = self.readable(name)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            return self.say(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        return self.say(200, {"id": name, "sha": commit, "private": repository.private, "siblings": files})

    def file(self, name, revision, path):
        repository = self.readable(name)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            return self.say(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        if path not in repository.commits[commit]:
            return self.say(404, {"error": "Entry not found"}, "EntryNotFound", {"X-Repo-Commit": commit})
        data = repository.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_name(data)}"'}
        if not path.endswith(LARGE):
            return self.say(200, headers=headers, data=data)
        oid = hashlib.sha256(data).hexdigest()
        self.hub.objects[oid] = data
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        return self.say(302, headers={**headers, "Location": f"{self.hub.store}/{oid}"}, data=b"")

    def stored(self, oid):
        self.say(200, data=self.hub.damage(self.hub.objects[oid]))


NAME, REST = r"([^/]+/[^/]+)", r"(.+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{NAME}/branch/([^/]+)", Handler.branch),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    ("PUT", "/store/([0-9a-f]{64})", Handler.store),
    (("GET", "HEAD"), "/store/([0-9a-f]{64})", Handler.stored),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    (("GET", "HEAD"), f"/{NAME}/resolve/([^/]+)/{REST}", Handler.file),
]
