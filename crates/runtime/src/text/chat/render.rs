//! A chat template at work, with what transformers gives one.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::Message;
use super::date::strftime;
use super::json::tojson;
use super::methods::{PERCENT, method, percent};
use super::source::translated;
use crate::text::guard::guarded;

/// Name of the one template.
const NAME: &str = "chat";
/// Work that a template may do: instructions, and 64 bytes of text each. The longest known ones take
/// some thousands.
const FUEL: u64 = 1 << 20;
/// Time that a template may take; known ones take some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Stack for templates that call themselves as often as they may.
const STACK_BYTES: usize = 8 << 20;
/// What minijinja says of Python's `%` behind a text, which is translated only where that is a literal.
const PERCENT_OF_TEXT: &str = "tried to use % operator on unsupported types string and";
const FORMATS: &str = "it puts values into a text by `%`, which works behind a literal alone; write \
                       `text|format(values)` in a chat_template.jinja beside the model";
const ENDLESS: &str = "the chat template does not end, or makes too much text";

/// A compiled template.
#[derive(Debug)]
pub(super) struct Renderer {
    environment: Environment<'static>,
    patience: Duration,
}

impl Renderer {
    /// Compiles `source`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_unknown_method_callback(method);
        environment.add_filter("tojson", tojson);
        environment.add_filter(PERCENT, percent);
        environment.add_function("raise_exception", refuse);
        environment.add_test("iterable", is_iterable);
        // It breaks lines where Python's does not.
        environment.remove_filter("pprint");
        let source = translated(source);
        let added = guarded(|| {
            environment
                .add_template_owned(NAME, source)
                .map_err(|e| line(&e))
        });
        added.unwrap_or_else(unusable)?;
        Ok(Self { environment, patience: PATIENCE })
    }

    /// A conversation, with the special `tokens` and the time `now` in seconds after 1970 began.
    ///
    /// # Errors
    /// What the template refuses, and a template that does too much.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tokens: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<String, String> {
        let mut environment = self.environment.clone();
        let strftime_now = move |format: &str| {
            strftime(format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        };
        environment.add_function("strftime_now", strftime_now);
        let length: usize = messages.iter().map(|message| message.content.len()).sum();
        environment.set_fuel(Some(FUEL + length as u64));
        let conversation = context! {
            messages => Value::from(Serde(messages)),
            tools => (),
            documents => (),
            add_generation_prompt => true,
            ..Value::from(Serde(tokens))
        };
        let render = move || environment.get_template(NAME)?.render(conversation);
        within(self.patience, move || {
            guarded(|| render().map_err(|e| line(&e))).unwrap_or_else(unusable)
        })
    }
}

/// What `work` gives, on a thread of its own, which is left to itself if it takes longer: values that
/// contain each other many times cost no fuel to compare or print.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().stack_size(STACK_BYTES);
    // Nobody listens any more to one that comes too late.
    let started = thread.spawn(move || drop(sender.send(work())));
    started.map_err(|e| e.to_string())?;
    receiver
        .recv_timeout(patience)
        .unwrap_or_else(|_| Err(ENDLESS.to_owned()))
}

/// Whether a loop takes a value: in Python none is no empty list.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `raise_exception`: what a template says of a conversation that it was not made for.
fn refuse(message: &str) -> Result<(), Error> {
    let refused = format!("the template refuses the conversation: {message}");
    Err(Error::new(ErrorKind::InvalidOperation, refused))
}

/// One line of what went wrong.
fn line(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return ENDLESS.to_owned();
    }
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    let detail = if detail.starts_with(PERCENT_OF_TEXT) { FORMATS.to_owned() } else { detail };
    match error.line() {
        Some(line) => format!("line {line} of the chat template: {detail}"),
        None => detail,
    }
}

fn unusable<T>() -> Result<T, String> {
    Err("the chat template cannot be used".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let turn = Message::new("user", "Hi <b>");
        Renderer::new(source)?.render(&[turn], &BTreeMap::new(), 1_709_208_000)
    }

    #[test]
    fn json_is_that_of_python() {
        let value = r#"{'a': [1, 2.5, true, none, []], 'b': {}, 'é<"': 'x\n'}"#;
        let json = |options: &str| render(&format!("{{{{ {value}|tojson{options} }}}}")).unwrap();
        assert_eq!(json(""), r#"{"a": [1, 2.5, true, null, []], "b": {}, "é<\"": "x\n"}"#);
        assert_eq!(
            json("(indent=2)"),
            "{\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null,\n    []\n  ],\n  \"b\": {},\n  \"é<\\\"\": \"x\\n\"\n}"
        );
        assert_eq!(
            json("(separators=(',', ':'), ensure_ascii=true)"),
            r#"{"a":[1,2.5,true,null,[]],"b":{},"\u00e9<\"":"x\n"}"#
        );
    }

    #[test]
    fn values_and_methods_are_those_of_python() {
        let source = "{{ true }} {{ none }} {{ ['a', 1] }} {{ messages[0].content.split()[-1] }} \
                      {{ messages[0].get('x', 'no') }} {{ strftime_now('%d %b %Y') }} {{ missing }}|";
        assert_eq!(render(source).unwrap(), "True None ['a', 1] <b> no 29 Feb 2024 |");
        let marked = "{% generation %}{% set x = 1 %}{{ x }}{%- endgeneration %}{{ x }}";
        assert_eq!(render(marked).unwrap(), "1");
    }

    #[test]
    fn what_a_template_refuses_is_said_with_its_words() {
        let error = render("a\n{{ raise_exception('only users speak') }}").unwrap_err();
        assert_eq!(
            error,
            "line 2 of the chat template: the template refuses the conversation: only users speak"
        );
        let error = render("{% set f = '%s!' %}\n{{ f % messages[0].role }}").unwrap_err();
        assert_eq!(
            error,
            "line 2 of the chat template: it puts values into a text by `%`, which works behind a \
             literal alone; write `text|format(values)` in a chat_template.jinja beside the model"
        );
        let error = render("{% for %}").unwrap_err();
        assert!(error.starts_with("line 1 of the chat template: "), "{error}");
    }

    #[test]
    fn hostile_templates_end_in_a_message() {
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% for i in range(30000) %}{{ 'x' * 100000 }}{% endfor %}",
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        ] {
            assert_eq!(render(source).unwrap_err(), ENDLESS, "{source}");
        }
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(render(recursive).is_err());
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(9999), ")".repeat(9999));
        assert!(render(&deep).is_err());
    }

    #[test]
    fn values_that_hold_each_other_are_not_waited_for() {
        let doubled = "{% set ns = namespace(a=[0]) %}{% for i in range(21) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}";
        let error = render(&format!("{doubled}{{{{ ns.a|tojson }}}}")).unwrap_err();
        assert!(error.ends_with("tojson: expected at most 8388608 bytes"), "{error}");
        let mut renderer = Renderer::new(&format!("{doubled}{{{{ ns.a }}}}")).unwrap();
        renderer.patience = Duration::from_millis(1);
        let error = renderer.render(&[], &BTreeMap::new(), 0).unwrap_err();
        assert_eq!(error, ENDLESS);
    }
}
