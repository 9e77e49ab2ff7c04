"""What the resolvers call of torchvision, in the same shape, where torchvision is not installed."""

from torchvision import models as models
