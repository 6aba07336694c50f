"""The table of verdicts: what mail servers say, and whose fault it is.

An e-mail is refused for good only by a reply that is known to be about its recipient or its message. A reply about the
sender, the account, its quota or its reputation says nothing about the e-mail, which waits. Any other refusal is
unclear: the e-mail is tried again as after a transient one, with an alarm.

Sources: RFC 5321 (SMTP), RFC 3463 and its IANA registry (enhanced status codes), RFC 4954 (AUTH), and where a row names
them the servers' own pages and sources: Gmail ("Gmail SMTP errors and codes"), Exchange Online ("Email non-delivery
reports"), SES ("SMTP response codes"), SendGrid, Mailgun, Postmark, Zoho, iCloud, Yahoo, Yandex, mail.ru, Outlook.com,
Exchange, Postfix, Exim, cPanel, Sendmail, qmail.
"""

from __future__ import annotations

from typing import Final

from mail.verdicts import AFTER, ANY, BEFORE, Row, Stage, Verdict, code, ours, theirs

LOGIN: Final[tuple[Row, ...]] = (
    code(ANY, r"53[0458]", Verdict.CONFIGURATION, "RFC 4954", "535 5.7.8 Username and Password not accepted"),
    code(BEFORE, r"503", Verdict.CONFIGURATION, "RFC 4954", "503 5.5.1 Error: authentication required"),
    ours(
        r"(?:was|is|user) not authenticated|unauthenticated senders|authentication (?:is )?required|authenticate first",
        "Exchange",
        "550 5.7.1 Client was not authenticated",
    ),
    ours(r"turn on smtp authentication", "Exim", "550-Please turn on SMTP Authentication in your mail client"),
    ours(r"invalid credentials", "Gmail", "550 5.7.1 Invalid credentials for relay [192.0.2.1]"),
)
"""Our login is wrong, or wanted first."""
LATER: Final[tuple[Row, ...]] = (
    code(AFTER, r"4\d\d .*gr[ae]y-?list", Verdict.TRANSIENT, "Postgrey", "450 4.7.1 Client host rejected: Greylisted"),
    code(
        AFTER,
        r"4\d\d .*receiving mail (?:too quickly|at a rate)",
        Verdict.TRANSIENT,
        "Gmail",
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
    ),
)
"""Later, whoever we are."""
RIGHTS: Final[tuple[Row, ...]] = (
    ours(
        r"relay(?:ing)? (?:access )?(?:is )?(?:denied|disallowed|not permitted|prohibited)",
        "Postfix, Sendmail, Zoho",
        "454 4.7.1 <a@example.com>: Relay access denied",
    ),
    ours(
        r"unable to relay|(?:not (?:allowed|permitted)|denied) to relay|do(?:es)? not relay|relay denied",
        "Exchange",
        "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    ),
    ours(r"allowed rcpthosts", "qmail", "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"),
    ours(
        r"mail sending denied|denied sending|not allowed to (?:send|use|connect)\b"
        r"|unauthori[sz]ed|not authori[sz]ed to send",
        "Gmail, Mailgun, SMTP2GO, Fastmail",
        "550 5.7.0 Mail Sending denied",
    ),
    ours(
        r"sender (?:address )?(?:\S+ )?(?:was |is )?(?:rejected|refused|denied|not allowed|unknown)",
        "Postfix",
        "553 5.7.1 <a@example.com>: Sender address rejected: not logged in",
    ),
    ours(
        r"mail ?from .{0,40}(?:must|should) (?:be|equal)|sender is unvalidated|denies the sender|mail from invalid",
        "NetEase, QQ Mail, Coremail",
        "553 Mail from must equal authorized user",
    ),
    ours(
        r"not owned by (?:auth )?user|sender verify|badmailfrom|verification failed for|not local sender",
        "Yandex, Exim, mail.ru",
        "553 5.7.1 Not owned by auth user",
    ),
    ours(
        r"domain of sender|required for sender address",
        "Sendmail",
        "553 5.1.8 Domain of sender address a@example.com does not exist",
    ),
    ours(
        r"sendas ?denied|permissions? to send as",
        "Exchange Online",
        "554 5.2.252 SendAsDenied; a@example.com may not send as b@example.com",
    ),
    ours(
        r"from.{0,60}(?:verified|sender signature|not one of your)|email address is not verified",
        "SendGrid, SES, Postmark, iCloud",
        "550 The from address does not match a verified Sender Identity",
    ),
    ours(
        r"domain .{0,80}(?:not verified|unverified|is disabled)|sandbox subdomains|free accounts are for test",
        "Mailgun",
        "550 5.7.1 Sandbox subdomains are for test purposes only",
    ),
    ours(
        r"not authorized to perform|access denied: user",
        "SES",
        "554 Access denied: User arn:aws:iam::1:user/x is not authorized to perform ses:SendRawEmail",
    ),
    ours(
        r"bad outbound sender|banned send(?:er|ing)",
        "Exchange Online",
        "550 Access denied, bad outbound sender AS(42004)",
    ),
)
"""We may not send: through this server, or as this sender."""
RECIPIENT_CODES: Final[tuple[Row, ...]] = (
    code(
        AFTER,
        r"5\d\d[ -]5\.1\.(?:1|2|3|4|6|10)\b",
        Verdict.PERMANENT,
        "RFC 3463, 7505",
        "550 5.1.1 The email account that you tried to reach does not exist",
    ),
    code(
        AFTER,
        r"5\d\d[ -]5\.2\.[12]\b",
        Verdict.PERMANENT,
        "RFC 3463",
        "550 5.2.1 The email account that you tried to reach is disabled",
    ),
    code(AFTER, r"5\d\d[ -]5\.7\.1[78]\b", Verdict.PERMANENT, "RFC 7293", "550 5.7.17 Mailbox owner has changed"),
)
"""About the recipient, by an enhanced status code that means nothing else."""
ACCOUNT: Final[tuple[Row, ...]] = (
    ours(
        r"STOREDRV\.Submission|SubmissionQuota",
        "Exchange Online",
        "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException",
    ),
    ours(
        r"(?:sending|submission|daily|hourly|send|relay)[ -](?:\w+ )?(?:limit|quota|credits)"
        r"|\byou.{0,30}(?:exceeded|reached).{0,60}(?:limit|quota|credits)|(?:limit|quota) .{0,30}your account",
        "Gmail, iCloud, SES, outMail",
        "550 5.4.5 Daily user sending limit exceeded",
    ),
    ours(
        r"maximum credits|messaging limits|throttling failure|maximum sending rate|max (?:defers|emails) per hour",
        "SendGrid, SES, cPanel",
        "451 Maximum credits exceeded",
    ),
    ours(
        r"exceeded the max|unusual sending activity|too many (?:messages|emails) (?:sent|from)",
        "cPanel, Zoho",
        "550 5.4.6 Unusual sending activity detected. Please try after sometime",
    ),
    ours(
        r"your .{0,40}(?:suspended|disabled|paused|blocked|locked|expired)|sending (?:suspended|paused)"
        r"|account .{0,60}(?:suspended|paused|under review)|sender account|pending approval",
        "SES, Postmark",
        "554 Message rejected: Sending suspended for this account",
    ),
    code(
        AFTER,
        r"5\d\d[ -]5\.(?:4\.5|1\.90)\b",
        Verdict.CONFIGURATION,
        "Gmail, Exchange Online",
        "550 5.1.90 Your message can't be sent",
    ),
)
"""Our account has used up its quota, or is suspended."""
REPUTATION: Final[tuple[Row, ...]] = (
    ours(
        r"helo (?:command )?rejected|invalid helo|bad helo|helo name",
        "Postfix, Exim",
        "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
    ),
    ours(
        r"client host|reverse (?:dns|hostname)|PTR record|\brDNS\b",
        "Postfix",
        "550 5.7.25 Client host rejected: cannot find your reverse hostname",
    ),
    ours(
        r"blocked using|block ?list|black ?list|spamhaus|\bRBL\b|\bDNSBL\b|poor reputation|\[BL\d+\]",
        "Postfix, Yahoo",
        "554 5.7.1 Service unavailable; blocked using zen.spamhaus.org",
    ),
    ours(
        r"messages from \S+ weren't sent|banned sending IP"
        r"|originating from your IP|your IP .{0,40}(?:block|reject|listed)",
        "Outlook.com, Gmail",
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent",
    ),
    ours(
        r"\bSPF\b|\bDKIM\b|\bDMARC\b", "Gmail, iCloud", "550 5.7.26 This mail is unauthenticated. DKIM = did not pass"
    ),
    code(AFTER, r"5\d\d[ -]5\.1\.[78]\b", Verdict.CONFIGURATION, "RFC 3463", "550 5.1.8 Bad sender's system address"),
    code(
        AFTER,
        r"5\d\d[ -]5\.7\.(?:[389]|1[0-4]|2\d)\b",
        Verdict.CONFIGURATION,
        "RFC 5248, 7372",
        "554 5.7.9 Message not accepted for policy reasons",
    ),
    code(
        AFTER,
        r"5\d\d[ -]5\.7\.(?:5[47]|6[04]|5\d\d|6\d\d|7\d\d)\b",
        Verdict.CONFIGURATION,
        "Exchange Online",
        "550 5.7.708 Service unavailable. Access denied",
    ),
)
"""Our name, our address, or the authentication of our domain is refused."""
BEFORE_RCPT: Final[tuple[Row, ...]] = (
    code({Stage.CONNECT}, r"5", Verdict.CONFIGURATION, "RFC 5321", "554 No SMTP service here"),
    code({Stage.CONNECT}, r"", Verdict.CONNECTION, "RFC 5321", "454 4.7.0 Temporary authentication failure"),
    code(
        {Stage.MAIL},
        r"552 (?!5\.7)|5\d\d[ -]5\.(?:3\.4|2\.3)",
        Verdict.PERMANENT,
        "RFC 1870",
        "552 5.3.4 Message size exceeds fixed limit",
    ),
    code({Stage.MAIL}, r"5", Verdict.CONFIGURATION, "RFC 5321", "553 5.5.4 Not our idea of a sender"),
)
"""Before RCPT a server knows nothing of an e-mail but its size."""
RECIPIENT: Final[tuple[Row, ...]] = (
    theirs(
        r"(?:no such|unknown|unrecognized|invalid|inactive) (?:local )?(?:user|mailbox|recipient|person|address)",
        "Yandex, cPanel",
        "550 5.7.1 No such user!",
    ),
    theirs(
        r"(?:user|mailbox|recipient|account|address)\b.{0,60}(?:unknown|not found|n[o']t exist|disabled|inactive)",
        "mail.ru, Outlook.com",
        "550 Local user a@mail.ru: user not found",
    ),
    theirs(
        r"account has been disabled or discontinued|doesn't have an? \S+ account"
        r"|unrouteable address|host unknown|marked as inactive|5\.5\.0 requested action not taken: mailbox unavailable",
        "Yahoo, Exim, Postmark, Outlook.com",
        "550 Unrouteable address",
    ),
    theirs(
        r"recipient address rejected: (?:access denied|user unknown|unverified)",
        "Exchange Online, Postfix",
        "550 5.4.1 Recipient address rejected: Access denied",
    ),
    theirs(
        r"(?:user|mailbox|recipient|account) .{0,40}(?:over|exceed\w*) ?(?:\w+ )?quota|mailbox .{0,20}\bfull",
        "Dovecot, Exim",
        "550 Mailbox is full",
    ),
    code({Stage.RCPT}, r"551 (?!5\.7)", Verdict.PERMANENT, "RFC 5321", "551 User not local; please try elsewhere"),
)
"""About the recipient, in words."""
MESSAGE: Final[tuple[Row, ...]] = (
    code(AFTER, r"5\d\d[ -]5\.(?:3\.4|6\.\d+)\b", Verdict.PERMANENT, "RFC 3463", "554 5.6.0 Mail message is malformed"),
    code(
        AFTER,
        r"552 (?:5\.[23]\.\d+ )?.*(?:size|storage|exceed|quota|too (?:large|big|long)|full\b)",
        Verdict.PERMANENT,
        "RFC 5321",
        "552 Message exceeds the size limit",
    ),
    theirs(
        r"illegal attachment|potential security issue|too (?:large|big)|message (?:size|length)|too long",
        "Gmail",
        "550 5.7.0 This message was blocked because its content presents a potential security issue",
    ),
)
"""About the message."""
CLOSING: Final[tuple[Row, ...]] = (
    code(BEFORE, r"421", Verdict.CONNECTION, "RFC 5321", "421 4.3.2 Service shutting down"),
    code(AFTER, r"421", Verdict.TRANSIENT, "RFC 5321", "421 4.7.0 Try again later, closing connection"),
)
"""The server closes the connection: until MAIL of itself, afterwards perhaps because of one e-mail."""
OTHERWISE: Final[tuple[Row, ...]] = (
    code(AFTER, r"5", Verdict.UNCLEAR, "RFC 5321", "550 5.7.1 Message rejected for policy reasons"),
    code(
        {Stage.MAIL, *AFTER},
        r"4",
        Verdict.TRANSIENT,
        "RFC 5321",
        "451 4.3.0 Requested action aborted: local error in processing",
    ),
    code({Stage.DATA}, r"", Verdict.AMBIGUOUS, "not SMTP", "-1 Malformed SMTP response line"),
    code({Stage.RCPT, Stage.DATA_COMMAND}, r"", Verdict.TRANSIENT, "not SMTP", "-1 Malformed SMTP response line"),
    code({Stage.MAIL}, r"", Verdict.CONNECTION, "not SMTP", "-1 Malformed SMTP response line"),
)
"""Everything else."""
VERDICTS: Final = (
    *CLOSING,
    *LATER,
    *LOGIN,
    *RIGHTS,
    *RECIPIENT_CODES,
    *ACCOUNT,
    *REPUTATION,
    *BEFORE_RCPT,
    *RECIPIENT,
    *MESSAGE,
    *OTHERWISE,
)
"""All rows. The first that fits counts."""
