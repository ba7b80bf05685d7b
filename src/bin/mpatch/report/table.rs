//! Tables for people: columns that are as wide as their widest entries, and a last one that a terminal need not break.

use super::{QUOTE, escaped};

/// Blanks before a row, and between its entries.
const INDENT: usize = 2;
const GAP: usize = 2;
/// Fewer columns than this are no room for a sentence.
const ROOM_MIN: usize = 24;

/// Most characters of an entry that others stand behind.
const CELL_LENGTH_MAX: usize = 200;

/// Appends rows as [`Page::table`](super::Page::table) says; lines fit so many `columns`, where that is told.
pub(super) fn write(text: &mut String, rows: &[Vec<String>], columns: Option<usize>) {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| cells(row)).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let entries = rows.iter().filter_map(|row| row.get(column));
        entries.map(|cell| cell.chars().count().min(CELL_LENGTH_MAX)).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    for row in &rows {
        let before = widths.iter().take(row.len().saturating_sub(1));
        let indent = INDENT + before.map(|width| width + GAP).sum::<usize>();
        let line = format!("{}{}", " ".repeat(INDENT), aligned(row, &widths).trim_end());
        let room = columns.map(|columns| columns.saturating_sub(indent));
        match room.filter(|room| *room >= ROOM_MIN) {
            Some(room) => push_wrapped(text, &line, indent, room),
            None => text.push_str(&line),
        }
        text.push('\n');
    }
}

/// `line`, broken at blanks of what stands behind its first `indent` characters, so that this fits `room` characters.
fn push_wrapped(text: &mut String, line: &str, indent: usize, room: usize) {
    let start = line.char_indices().nth(indent).map_or(line.len(), |(at, _)| at);
    let (before, entry) = line.split_at(start);
    text.push_str(before);
    // Somebody else's words stay set off.
    let mark = if entry.starts_with(QUOTE) { QUOTE } else { "" };
    let least = mark.chars().count();
    let mut used = 0;
    for word in entry.split_inclusive(' ') {
        if used > least && used + word.trim_end().chars().count() > room {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            text.push_str(mark);
            used = least;
        }
        text.push_str(word);
        used += word.chars().count();
    }
}

/// The entries of a row as they are shown.
fn cells(row: &[String]) -> Vec<String> {
    let shown = |(index, cell): (usize, &String)| {
        let cell = escaped(cell);
        if index + 1 == row.len() { cell } else { cut(cell) }
    };
    row.iter().enumerate().map(shown).collect()
}

fn cut(cell: String) -> String {
    if cell.chars().nth(CELL_LENGTH_MAX).is_none() {
        return cell;
    }
    cell.chars().take(CELL_LENGTH_MAX - 1).chain(['…']).collect()
}

/// A row with each entry but the last filled up to the width of its column.
///
/// By hand, since a width in a format string may not exceed 65,535.
fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
        line.push_str(cell);
        if index + 1 < row.len() {
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + GAP));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_terminal_the_last_entry_of_a_row_goes_on_below_where_it_began() {
        let shown = |width: usize| {
            let mut text = String::new();
            let evidence = format!("of this {} and more", "x".repeat(30));
            let rows = [vec!["V0".into(), "holds".into(), evidence], vec!["V1 signed".into()]];
            write(&mut text, &rows, Some(width));
            text
        };
        let long = "x".repeat(30);
        assert_eq!(
            shown(50),
            format!("  V0         holds  of this\n{0}{long}\n{0}and more\n  V1 signed\n", " ".repeat(20))
        );
        let whole = format!("  V0         holds  of this {long} and more\n  V1 signed\n");
        assert_eq!(shown(80), whole);
        assert_eq!(shown(30), whole, "too narrow for any sentence");
        let mut text = String::new();
        let words = "│ V1 holds, says a stranger, and all is well";
        write(&mut text, &[vec!["1".into(), words.into()]], Some(30));
        assert_eq!(text, "  1  │ V1 holds, says a\n     │ stranger, and all is\n     │ well\n");
    }
}
