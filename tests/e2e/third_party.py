"""MCP servers nobody here wrote, and one call of each of their tools."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from processes import EVERYTHING, TESTS, TIME

MODULES = TESTS / "node_modules/@modelcontextprotocol"
NAMES = ["everything", "filesystem", "memory", "time", "git"]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
# So that a commit has the same name each time it is made.
ALWAYS_THE_SAME = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in [("NAME", "t"), ("EMAIL", "t@example.com"), ("DATE", "2026-01-01T00:00:00Z")]
}


def canonical(value):
    """The same text for the same value, but for what the clock and the dice say."""
    text = json.dumps(value, sort_keys=True)
    date, time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d", r"\d+:\d\d:\d\d [AP]M"
    return re.sub(f"{date}|{time}|[0-9a-f]{{32}}", "CHANGING", text)


def plain(arguments):
    """Arguments as JSON has them: paths are texts."""
    return json.loads(json.dumps(arguments, default=str))


class Server(NamedTuple):
    """How it is started, and what it is asked, in this order."""

    command: str
    args: list
    env: dict
    calls: list
    revisions: list = ["2025-11-25"]


class World:
    """What the servers look at and change: the same whenever a session begins."""

    def __init__(self, folder):
        self.kept, self.work = folder / "kept", folder / "work"
        self.kept.mkdir()
        (self.kept / "note.txt").write_text("grüße\nand ☃\n")
        (self.kept / "dot.png").write_bytes(PNG)

    def reset(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        (self.work / "note.txt").write_text("One\n")
        self._git("init", "-q", "-b", "main")
        self._git("add", ".")
        self._git("commit", "-q", "-m", "One")
        (self.work / "note.txt").write_text("Two ☃\n")

    def _git(self, *arguments):
        env = {**os.environ, **ALWAYS_THE_SAME}
        subprocess.run(["git", "-C", self.work, *arguments], check=True, timeout=30, env=env)

    def server(self, name):
        return {
            "everything": self._everything,
            "filesystem": self._filesystem,
            "memory": self._memory,
            "time": self._time,
            "git": self._git_server,
        }[name]()

    def _everything(self):
        calls = [
            ("echo", {"message": "☃ \\ \u2028 \""}),
            ("echo", {"message": "x" * 100_000}),
            ("get-annotated-message", {"messageType": "error", "includeImage": True}),
            ("get-env", {}),
            ("get-resource-links", {"count": 3}),
            ("get-resource-reference", {"resourceType": "Text", "resourceId": 2}),
            ("get-structured-content", {"location": "New York"}),
            ("get-sum", {"a": 2, "b": 40.5}),
            ("get-tiny-image", {}),
            ("gzip-file-as-resource", {"name": "a.gz", "data": "data:,a", "outputType": "resource"}),
            ("toggle-simulated-logging", {}),
            ("toggle-subscriber-updates", {}),
            ("trigger-long-running-operation", {"duration": 0.2, "steps": 2}),
            # It is for tasks, and this is no task.
            ("simulate-research-query", {"topic": "tea"}),
            # An error of the tool itself is an answer.
            ("get-sum", {"a": "two"}),
        ]
        # It shows its environment, which must not depend on who starts it.
        bare = ["-i", f"PATH={os.environ['PATH']}", "node"]
        return Server("env", [*bare, EVERYTHING, "stdio"], {}, calls)

    def _filesystem(self):
        note, dot, file = self.kept / "note.txt", self.kept / "dot.png", self.work / "new.txt"
        folder = self.work / "folder"
        calls = [
            ("read_file", {"path": note, "head": 1}),
            ("read_text_file", {"path": note}),
            ("read_media_file", {"path": dot}),
            ("read_multiple_files", {"paths": [note, self.kept / "none"]}),
            ("write_file", {"path": file, "content": "a\u2028\nb\n"}),
            ("edit_file", {"path": file, "edits": [{"oldText": "b", "newText": "ü"}]}),
            ("create_directory", {"path": folder}),
            ("move_file", {"source": file, "destination": folder / "new.txt"}),
            ("list_directory", {"path": self.kept}),
            ("list_directory_with_sizes", {"path": self.kept, "sortBy": "size"}),
            ("directory_tree", {"path": folder}),
            ("search_files", {"path": self.kept, "pattern": "*.txt"}),
            ("get_file_info", {"path": note}),
            ("list_allowed_directories", {}),
            ("read_text_file", {"path": "/"}),
        ]
        script = MODULES / "server-filesystem/dist/index.js"
        return Server("node", [script, self.kept, self.work], {}, calls)

    def _memory(self):
        entity = {"name": "Ada", "entityType": "person", "observations": ["grüßt"]}
        other = {"name": "Bob", "entityType": "person", "observations": []}
        relation = {"from": "Ada", "to": "Bob", "relationType": "knows"}
        calls = [
            ("create_entities", {"entities": [entity, other]}),
            ("create_relations", {"relations": [relation]}),
            ("add_observations", {"observations": [{"entityName": "Bob", "contents": ["☃"]}]}),
            ("read_graph", {}),
            ("search_nodes", {"query": "Ada"}),
            ("open_nodes", {"names": ["Bob"]}),
            ("delete_observations", {"deletions": [{"entityName": "Bob", "observations": ["☃"]}]}),
            ("delete_relations", {"relations": [relation]}),
            ("delete_entities", {"entityNames": ["Bob"]}),
            ("read_graph", {}),
            ("add_observations", {"observations": [{"entityName": "Eve", "contents": []}]}),
        ]
        env = {"MEMORY_FILE_PATH": str(self.work / "memory.json")}
        return Server("node", [MODULES / "server-memory/dist/index.js"], env, calls)

    def _time(self):
        there = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        calls = [
            ("get_current_time", {"timezone": "Etc/UTC"}),
            ("convert_time", there),
            ("convert_time", {**there, "source_timezone": "Nowhere/Land"}),
        ]
        revisions = ["2025-11-25", "2026-07-28"]
        return Server(str(TIME), ["--local-timezone", "UTC"], {}, calls, revisions)

    def _git_server(self):
        here = {"repo_path": self.work}
        calls = [
            ("git_status", here),
            ("git_diff_unstaged", here),
            ("git_add", {**here, "files": ["note.txt"]}),
            ("git_diff_staged", here),
            ("git_diff", {**here, "target": "HEAD"}),
            ("git_reset", here),
            ("git_add", {**here, "files": ["note.txt"]}),
            ("git_commit", {**here, "message": "Grüße"}),
            ("git_log", {**here, "max_count": 2}),
            ("git_create_branch", {**here, "branch_name": "side"}),
            ("git_checkout", {**here, "branch_name": "side"}),
            ("git_show", {**here, "revision": "HEAD"}),
            ("git_branch", {**here, "branch_type": "local"}),
            ("git_log", {"repo_path": self.kept}),
        ]
        command = Path(sys.executable).with_name("mcp-server-git")
        revisions = ["2025-11-25", "2026-07-28"]
        return Server(str(command), ["--repository", self.work], ALWAYS_THE_SAME, calls, revisions)
