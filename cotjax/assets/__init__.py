"""What ships with cotjax: the small base model of the demo, as a Hugging Face folder."""

from pathlib import Path

BASE_FOLDER = Path(__file__).parent / "base"
