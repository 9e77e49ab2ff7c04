"""Short files of published data sets, and what comes of them by measures of their own."""
