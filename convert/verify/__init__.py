"""What an exporter wrote, read and run again from the saved files alone."""
