"""What a person sees and types: flags, messages, layout, the live view."""
