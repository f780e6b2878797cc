"""Images and videos of documents become what goes into a prompt."""

from winnow.media.images import ImageLoader, as_read, image_identity
from winnow.media.videos import NO_VIDEOS
from winnow.media.vision import PromptImage, PromptVideo, Shown, Vision

__all__ = ["NO_VIDEOS", "ImageLoader", "PromptImage", "PromptVideo", "Shown", "Vision", "as_read", "image_identity"]
