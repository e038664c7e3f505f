"""A hub of one process: answers the requests of huggingface_hub that concern whole repositories of small files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub:
    """Repositories by id: branches by name, each a table of files by path; `refused` says which ids answer what."""

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), partial(HubHandler, self))
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, files):
        """The id of a state of a repository."""
        told = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        name = hashlib.sha1(repr(told).encode()).hexdigest()
        self.commits[name] = dict(files)
        return name

    def files(self, repo, revision):
        if revision in self.commits:
            return self.commits[revision]
        return self.repos[repo].get(revision)


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection to a hub."""

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)  # which answers

    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': str(len(data)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def missing(self, code, status=404):
        self.answer(status, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self):
        path, body = self.path.partition('?')[0], self.body()
        self.hub.requests.append(f'{self.command} {path}')
        if path == '/api/repos/create':
            return self.create(json.loads(body))
        if path == '/api/validate-yaml':
            return self.answer(200, {'errors': [], 'warnings': []})
        return self.answer_repository(path, body)

    def body(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer_repository(self, path, body):
        match = re.fullmatch(r'(?:/api/models)?/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+)(?:/(.+))?)?)?', path)
        repo, what, revision, rest = match.groups()
        if repo in self.hub.refused:
            return self.missing(self.hub.refused[repo][1], self.hub.refused[repo][0])
        if repo not in self.hub.repos:
            return self.missing('RepoNotFound')
        if what == 'branch':
            self.hub.repos[repo].setdefault(revision, dict(self.hub.repos[repo]['main']))
            return self.answer(200, {})
        if what == 'discussions':
            return self.discussion(repo)
        files = self.hub.files(repo, revision or 'main')
        if files is None:
            return self.missing('RevisionNotFound')
        return getattr(self, what or 'revision')(repo, revision or 'main', files, rest, body)

    do_GET = do_HEAD = do_POST = handle_any

    def create(self, asked):
        repo = f'{asked["organization"]}/{asked["name"]}'
        if repo in self.hub.refused:
            return self.missing(self.hub.refused[repo][1], self.hub.refused[repo][0])
        known = repo in self.hub.repos
        self.hub.repos.setdefault(repo, {'main': {'.gitattributes': b''}})
        return self.answer(409 if known else 200, {'url': f'{self.hub.address}/{repo}', 'name': repo, 'id': repo})

    def discussion(self, repo):
        self.hub.repos[repo].setdefault('refs%2Fpr%2F1', dict(self.hub.repos[repo]['main']))
        told = {'num': 1, 'title': 'x', 'status': 'draft', 'isPullRequest': True, 'events': [], 'diff': ''}
        told |= {'changes': {'base': 'refs/heads/main'}, 'filesWithConflicts': [], 'author': {'name': 'me'}}
        told |= {'createdAt': '2026-01-01T00:00:00.000Z', 'repo': {'name': repo, 'type': 'model'}}
        self.answer(200, told)

    def revision(self, repo, revision, files, rest, body):
        self.answer(200, {'id': repo, 'sha': self.hub.commit(files), 'siblings': [{'rfilename': p} for p in files]})

    def tree(self, repo, revision, files, rest, body):
        rows = [
            {'type': 'file', 'path': path, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        self.answer(200, rows)

    def resolve(self, repo, revision, files, rest, body):
        if rest not in files:
            return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=self.hub.commit(files))
        etag = f'"{hashlib.sha1(files[rest]).hexdigest()}"'
        return self.answer(200, files[rest], ETag=etag, X_Repo_Commit=self.hub.commit(files))

    def preupload(self, repo, revision, files, rest, body):
        asked = json.loads(body)['files']
        self.answer(
            200, {'files': [{'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for f in asked]}
        )

    def commit(self, repo, revision, files, rest, body):
        changed = dict(files)
        for line in map(json.loads, body.decode().splitlines()):
            if line['key'] == 'header':
                self.hub.messages.append(line['value']['summary'])
            elif line['key'] == 'file':
                changed[line['value']['path']] = base64.b64decode(line['value']['content'])
            elif line['key'] == 'deletedFile':
                del changed[line['value']['path']]
        self.hub.repos[repo][revision] = changed
        name = self.hub.commit(changed)
        self.answer(200, {'commitUrl': f'{self.hub.address}/{repo}/commit/{name}', 'commitOid': name})
