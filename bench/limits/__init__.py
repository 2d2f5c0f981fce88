"""Limits that figures are compared with: bare copies, bare disk reads, fio."""
