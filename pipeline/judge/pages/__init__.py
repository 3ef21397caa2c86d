"""What all pages are made of: pictures, templates, and how they are rendered."""
