"""Files and folders: one bounded reader for each format, atomic writes, locks between processes, and hashes.

What is read may come from strangers. Each reader ends in a valid object or in `DataError`, whatever the file
holds (`docs/reliability.md#untrusted-files`).
"""

from truthgate_eval.files.folders import build_once, folder_lock, replace_folder, update_folder
from truthgate_eval.files.json_text import (
    MAX_DATASET_BYTES,
    MAX_JSON_DEPTH,
    check_json_depth,
    parse_json,
    read_json,
    read_json_lines,
)
from truthgate_eval.files.regular import open_regular, read_bounded, read_text, sha256, unreadable
from truthgate_eval.files.writing import (
    atomic_file,
    check_file,
    check_folder,
    check_writable,
    write_atomic,
    write_error,
)

__all__ = [
    "MAX_DATASET_BYTES",
    "MAX_JSON_DEPTH",
    "atomic_file",
    "build_once",
    "check_file",
    "check_folder",
    "check_json_depth",
    "check_writable",
    "folder_lock",
    "open_regular",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_json_lines",
    "read_text",
    "replace_folder",
    "sha256",
    "unreadable",
    "update_folder",
    "write_atomic",
    "write_error",
]
