"""The limits that figures are held to: copies, disks, barest loops."""
