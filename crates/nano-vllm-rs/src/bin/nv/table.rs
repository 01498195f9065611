//! Text in aligned columns.

use std::fmt;

/// Which side the cells of a column are aligned to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A title, and rows under it.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    title: String,
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(title: impl Into<String>, align: [Align; N]) -> Self {
        Self { title: title.into(), align, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [&dyn ToString; N]) {
        self.rows.push(cells.map(ToString::to_string));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        writeln!(f, "{}", self.title)?;
        for row in &self.rows {
            let pad = |((cell, align), width): ((&String, Align), usize)| match align {
                Align::Left => format!("  {cell:<width$}"),
                Align::Right => format!("  {cell:>width$}"),
            };
            let line: String = row.iter().zip(self.align).zip(widths).map(pad).collect();
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_in_no_blanks() {
        let mut table = Table::new("sizes", [Align::Left, Align::Right, Align::Left]);
        table.row([&"α", &1000, &"x"]);
        table.row([&"longer", &1, &""]);
        assert_eq!(table.to_string(), "sizes\n  α       1000  x\n  longer     1\n");
    }
}
