"""The encrypted template vault of a site."""

from client.vault.gallery import Gallery
from client.vault.log import OPERATIONS, OUTCOMES, LogEntry, LogReport, Operation
from client.vault.receipt import Receipt
from client.vault.vault import SubjectInfo, Vault, VaultInfo

__all__ = [
    "OPERATIONS", "OUTCOMES", "Gallery", "LogEntry", "LogReport", "Operation", "Receipt",
    "SubjectInfo", "Vault", "VaultInfo",
]  # fmt: skip
