"""What processes say to one another: `messages` defines it, `wire` puts it in frames."""
