"""Images and videos of documents become what goes into a prompt."""

from winnow.media.images import MediaLoader, as_read, medium_identity
from winnow.media.videos import NO_VIDEOS
from winnow.media.vision import PromptImage, PromptVideo, Shown, Vision

__all__ = ["NO_VIDEOS", "MediaLoader", "PromptImage", "PromptVideo", "Shown", "Vision", "as_read", "medium_identity"]
