"""SQL: runs, rejects, the ledger, releases, artifacts, audits, leases."""
