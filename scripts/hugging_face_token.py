"""Lets detect-secrets recognise a token of the Hugging Face Hub, which it does not by itself."""

import re

from detect_secrets.plugins.base import RegexBasedDetector


class HuggingFaceTokenDetector(RegexBasedDetector):
    """Finds what the Hub calls a user access token."""

    # pragma: allowlist nextline secret
    secret_type = "Hugging Face token"
    denylist = [re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")]
