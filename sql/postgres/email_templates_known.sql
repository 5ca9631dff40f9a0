-- The templates that people can pause and cap.
SELECT template FROM crm.email_templates
