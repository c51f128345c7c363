//! The secrets of a command line, and their removal from every text that is printed: the token, the
//! values of parameters such as `?token=`, and passwords in URLs. Pure text.

/// Stands for a secret.
const MASK: &str = "***";
/// A parameter of a URL is secret if its name contains one of these.
const SECRET_NAMES: [&str; 8] = ["token", "jwt", "key", "secret", "auth", "bearer", "pass", "sig"];

/// See the head of this file.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// The secrets of a token and of URLs, which need not be valid.
    pub(super) fn new<'a>(token: Option<&'a str>, urls: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = token.into_iter().collect::<Vec<_>>();
        for url in urls {
            let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
            secrets.extend(user.split_once(':').map(|(_, password)| password));
            let query = rest.split_once('?').map_or("", |(_, query)| query);
            let query = query.split('#').next().unwrap_or_default();
            for (name, value) in query.split(['&', ';']).filter_map(|parameter| parameter.split_once('=')) {
                let name = name.to_ascii_lowercase();
                secrets.extend(SECRET_NAMES.iter().any(|secret| name.contains(secret)).then_some(value));
            }
        }
        let mut secrets =
            secrets.into_iter().filter(|secret| !secret.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        // The longest first: a secret may contain another one.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    /// The text without any of them.
    pub(super) fn mask(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_passwords_are_removed_wherever_they_stand() {
        let url = "ws://me:pw4711@h:1/ws?Access_Token=abc.def&room=7&jwt=ghi#x";
        let secrets = Secrets::new(Some("s3cret"), [url, "http://h/publish?apikey=s3cret-2"]);
        let command = format!("hydrant load --token s3cret --token=s3cret --url {url} --x s3cret-2");
        let masked = secrets.mask(&command);
        assert_eq!(
            masked,
            "hydrant load --token *** --token=*** --url ws://me:***@h:1/ws?Access_Token=***&room=7&jwt=***#x --x ***"
        );
        assert_eq!(Secrets::new(None, ["ws://h/ws?room=7"]).mask("room=7"), "room=7");
        assert_eq!(Secrets::new(Some(""), []).mask("abc"), "abc");
    }
}
