"""Writes the pages of docs/reference from the code and from the templates beside this file.

A template is a page with holes, `{{name}}` or `{{name ...}}`, in which a module of this folder puts
what it reads from the code. What the code cannot say (sequences, reasons, examples) is the template's.
"""
