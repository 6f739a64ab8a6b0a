"""Notebooks as PDF: exporter.py (nbconvert), reader.lua (pandoc), notebook.typ (look)."""

from tools.notebook_pdf.exporter import TypstPDFExporter

__all__ = ["TypstPDFExporter"]
