//! The same tensor of many layers under one name.

/// `model.layers.7.mlp` as `model.layers.`, `7` and `.mlp`; another name as itself.
pub(crate) fn split_at_layer(name: &str) -> (&str, Option<usize>, &str) {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        match part.parse::<usize>() {
            Ok(layer) if layer.to_string() == part => {
                return (&name[..start], Some(layer), &name[end..]);
            }
            _ => start = end + 1,
        }
    }
    (name, None, "")
}

/// Sorted `numbers` as a shell would take them: `3`, `{0..5}`, `{0..5,7}`; nothing for none.
pub(crate) fn ranges(numbers: &[usize]) -> String {
    let ranges: Vec<String> = numbers
        .chunk_by(|a, b| a + 1 == *b)
        .map(|range| match range {
            [first, .., last] => format!("{first}..{last}"),
            _ => range[0].to_string(),
        })
        .collect();
    if numbers.len() > 1 { format!("{{{}}}", ranges.join(",")) } else { ranges.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_around_the_layer() {
        let check = |name, expected| assert_eq!(split_at_layer(name), expected);
        check("model.layers.7.mlp", ("model.layers.", Some(7), ".mlp"));
        check("model.layers.12", ("model.layers.", Some(12), ""));
        check("3.x.4", ("", Some(3), ".x.4"));
        check("model.norm", ("model.norm", None, ""));
        check("a.07.+7.b", ("a.07.+7.b", None, ""));
        check("", ("", None, ""));
    }

    #[test]
    fn numbers_in_a_row_are_one_range() {
        let check = |numbers: &[usize], expected| assert_eq!(ranges(numbers), expected);
        check(&[], "");
        check(&[3], "3");
        check(&[0, 1, 2], "{0..2}");
        check(&[0, 2, 3, 9], "{0,2..3,9}");
    }
}
