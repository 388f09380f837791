//! Names that come from Girder as names of files: always one component of a path. Pure.

use sha2::{Digest, Sha256};

use super::file::hex;

/// The longest name that file systems take, in bytes.
const LONGEST: usize = 255;
/// The longest ending that is kept when a name is shortened, in bytes.
const ENDING: usize = 32;

/// `name` as one component: the same wherever a file system takes it, else without what makes it dangerous.
pub fn component(name: &str) -> String {
    let safe: String = name.chars().map(|c| if matches!(c, '/' | '\0') { '_' } else { c }).collect();
    match safe.as_str() {
        "" => "_".to_owned(),
        "." | ".." => format!("_{safe}"),
        _ => shortened(safe),
    }
}

/// The name that `girder_client` gives what it downloads (`GirderClient.transformFilename`), as one component.
pub fn downloaded(name: &str) -> String {
    let name = name.replace('/', "_");
    // `^[/\\]+` becomes one underscore.
    let rest = name.trim_start_matches('\\');
    if rest.len() < name.len() { component(&format!("_{rest}")) } else { component(&name) }
}

/// `name`, or one made from it that `is_taken` does not know: `a (1).txt`.
pub fn free(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let (stem, ending) = split(name);
    // A folder holds fewer entries than that.
    (1..u32::MAX)
        .map(|n| shortened(format!("{stem} ({n}){ending}")))
        .find(|name| !is_taken(name))
        .unwrap_or_else(|| name.to_owned())
}

/// Cut to what file systems take; a sum keeps two long names apart.
fn shortened(name: String) -> String {
    if name.len() <= LONGEST {
        return name;
    }
    let (stem, ending) = split(&name);
    let sum = &hex(&Sha256::digest(name.as_bytes()))[..8];
    let mut end = LONGEST - ending.len() - sum.len() - 1;
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{sum}{ending}", &stem[..end])
}

/// What stands before the last dot, and the rest.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= ENDING => name.split_at(dot),
        _ => (name, ""),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dangerous_names_become_harmless_and_all_others_stay() {
        for (name, safe) in [
            ("a.txt", "a.txt"),
            ("  spaces and ünïcode\n", "  spaces and ünïcode\n"),
            ("../../etc/passwd", ".._.._etc_passwd"),
            ("/etc/passwd", "_etc_passwd"),
            ("..", "_.."),
            (".", "_."),
            ("", "_"),
            ("a\0b", "a_b"),
            (".hidden", ".hidden"),
            ("\\\\server\\share", "\\\\server\\share"),
        ] {
            assert_eq!(component(name), safe);
        }
    }

    #[test]
    fn downloads_are_named_as_girder_client_names_them() {
        // Taken from GirderClient.transformFilename itself.
        for (name, named) in [
            ("a/b", "a_b"),
            ("/a", "_a"),
            ("//a", "__a"),
            ("\\\\a\\b", "_a\\b"),
            ("..", "_.."),
            (".", "_."),
            ("plain", "plain"),
        ] {
            assert_eq!(downloaded(name), named);
        }
    }

    #[test]
    fn a_long_name_is_cut_keeps_its_ending_and_differs_from_its_neighbour() {
        let name = format!("{}.nii.gz", "ä".repeat(200));
        let cut = component(&name);
        assert!(cut.len() <= LONGEST && cut.len() > LONGEST - 3 && split(&cut).1 == ".gz", "{cut}");
        assert_ne!(cut, component(&format!("{}x.nii.gz", "ä".repeat(200))));
    }

    #[test]
    fn a_taken_name_is_counted_up() {
        assert_eq!(free("a.txt", |name| name == "a (1).txt"), "a (2).txt");
        assert_eq!(free("a", |_| false), "a (1)");
    }

    proptest! {
        #[test]
        fn any_name_becomes_one_component(name in any::<String>()) {
            for safe in [component(&name), downloaded(&name), free(&component(&name), |_| false)] {
                prop_assert!(!safe.is_empty() && safe.len() <= LONGEST);
                prop_assert!(!safe.contains(['/', '\0']) && safe != "." && safe != "..");
            }
        }
    }
}
