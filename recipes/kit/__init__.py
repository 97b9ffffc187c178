"""What all jobs share: settings, command line, networks, images, run folder, progress."""
