"""The encrypted template vault of a site."""

from client.vault.gallery import Gallery
from client.vault.listing import SubjectInfo, VaultInfo
from client.vault.log import OPERATIONS, OUTCOMES, LogEntry, LogReport, Operation
from client.vault.log_check import verify_log
from client.vault.migration import Migration
from client.vault.receipt import Receipt
from client.vault.vault import Vault

__all__ = [
    "OPERATIONS", "OUTCOMES", "Gallery", "LogEntry", "LogReport", "Migration", "Operation",
    "Receipt", "SubjectInfo", "Vault", "VaultInfo", "verify_log",
]  # fmt: skip
