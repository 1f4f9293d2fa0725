"""Audits of pretext tasks: shortcuts, conformance, preview, speed."""
